"""What an install of version 1 leaves behind after years, made up row by row, with what must become of each row.

It serves to rehearse the move to version 2. Each row is made from the outcome backwards: first what is true (who and
when), then how version 1, a hand or an import would have written it. So the expected outcome owes nothing to any
reader of those texts.
"""
