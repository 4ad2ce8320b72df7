"""SegNeXt-T on CamVid, from scratch or from its ImageNet weights; 367 images are seen about 440
times.
"""

_base_ = [
    '../segnext/_base_/segnext_mscan-t.py',
    '../_base_/seg/datasets/camvid.py',
    '../_base_/seg/schedules/adamw_160k_head10x.py',
    '../_base_/seg/default_runtime.py',
]
iterations = 20000
model = dict(data_preprocessor=dict(size=(360, 480)), decode_head=dict(num_classes=11))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000))
