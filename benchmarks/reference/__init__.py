"""The method as one would write it down from the paper alone: eager float32, nothing shared, cached or left out.

It reads the program's weights (tensors by name) and takes the same images and random numbers, so that both sides can be
compared; of the program's code it uses none but the classifier's two modules, f_sub and the head.
"""
