_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrednet.SAN',
        depth=19,
        relation='pairwise',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/san19_pairwise.pth'),
    )
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
