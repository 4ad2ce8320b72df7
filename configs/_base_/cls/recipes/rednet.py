# cls/configs of the involution repository: 64 GPUs with 32 images, 130 epochs, 3130 iterations of
# warm-up
_base_ = '../imagenet_224.py'
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.8, momentum=0.9, weight_decay=1e-4, nesterov=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=3130),
    dict(
        type='CosineAnnealingLR',
        T_max=130,
        by_epoch=True,
        begin=0,
        end=130,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=130, val_interval=1)
auto_scale_lr = dict(base_batch_size=2048)
