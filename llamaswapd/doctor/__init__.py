"""`llamaswapd doctor`: what on this machine keeps models from running, and the command that helps.

Looks and changes nothing. A check is a function from what is to be looked at to findings, in a list in `checks`; the
machine is behind `machine.Machine`, so that tests can put a folder in its place.
"""
