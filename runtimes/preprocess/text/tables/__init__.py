"""Tables with questions as tokens, as TAPAS reads them: the cells in rows, and seven types for each token.

`table` holds what a table is, `quantities` finds numbers and dates in a text, `comparing` ranks the cells of a column
and compares them with a question, `fitting` says how much of a table fits, and `reader` puts the tokens together.
"""
