_base_ = [
    './datasets/cityscapes.py',
    './schedules/lookahead_60k.py',
    './default_runtime.py',
]
