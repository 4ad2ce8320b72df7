_base_ = [
    '../_base_/seg/models/semantic_fpn.py',
    '../_base_/seg/datasets/cityscapes.py',
    '../_base_/seg/schedules/sgd_80k.py',
    '../_base_/seg/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmrednet.SAN',
        depth=10,
        relation='pairwise',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/san10_pairwise.pth'),
    )
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
