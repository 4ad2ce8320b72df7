_base_ = [
    './datasets/coco.py',
    './schedules/lookahead_200k.py',
    './default_runtime.py',
]
