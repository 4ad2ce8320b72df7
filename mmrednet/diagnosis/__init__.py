"""What works on this machine, what does not, and what to do about it: see ``mmrednet doctor``.

Each module examines one subject and returns a section of the report. None of them needs the
OpenMMLab stack.
"""
