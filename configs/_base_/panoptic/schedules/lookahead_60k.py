optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='mmrednet.Lookahead', base='RAdam', lr=1e-3)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=2000),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=2000, end=60000, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=60000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
