"""What comes out of the trainer: adapter files, sample pictures, a report, and adapters put on a shelf.

Takes trained factors and what a run says of itself; gives files. Knows no data set, no optimiser and no loop: the loop
calls it.
"""
