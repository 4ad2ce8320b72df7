_base_ = './lookahead_60k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=2000),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=2000, end=150000, by_epoch=False),
]
train_cfg = dict(max_iters=150000, val_interval=10000)
