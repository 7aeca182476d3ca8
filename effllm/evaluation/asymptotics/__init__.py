"""HARDMath: asymptotic formulas as answers, read from LaTeX and compared by their values."""
