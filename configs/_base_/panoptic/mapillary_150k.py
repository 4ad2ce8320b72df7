_base_ = [
    './datasets/mapillary.py',
    './schedules/lookahead_150k.py',
    './default_runtime.py',
]
