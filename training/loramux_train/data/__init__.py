"""The data side of training: folders of captioned pictures become batches; knows no loop, no optimiser and no base."""
