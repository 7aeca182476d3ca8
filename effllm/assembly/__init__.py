"""Tables from artifacts, and what is made of all tables, each written with the record of what it was made from."""
