"""What stages write as JSON: one model for each file, by which it is written and read.

A key that only later versions of a stage write has a default; files without it can still be read. Importing this
package is cheap, and its models are built when they are first used.
"""
