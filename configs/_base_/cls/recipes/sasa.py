# the paper: batches of 4096 (here 64 x 64), 130 epochs, 10 of warm-up, averaged weights; weight
# decay and the smoothing of labels, which we did not find there, are those of RedNet
_base_ = '../imagenet_224.py'
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1.6, momentum=0.9, weight_decay=1e-4, nesterov=True),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=120,
        by_epoch=True,
        begin=10,
        end=130,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=130, val_interval=1)
# mmengine's momentum is one minus the paper's 0.9999
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=4096)
