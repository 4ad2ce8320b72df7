# train.sh and the defaults of train.py of VAN-Classification: 8 GPUs with 128 images, 300 epochs
# and 10 at the least learning rate. RandAugment (rand-m9-mstd0.5-inc1), which it has as well, is
# not here
_base_ = '../imagenet_224.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmrednet.RandomResizedCrop', size=224),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmrednet.RandomErasing', prob=0.25),
    dict(type='mmrednet.PackImage'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
model = dict(mixup=0.8, cutmix=1.0)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0, flat_decay_mult=0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5),
    dict(type='CosineAnnealingLR', T_max=300, eta_min=1e-6, by_epoch=True, begin=0, end=300),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=310, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
