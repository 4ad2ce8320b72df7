"""A mixed network: convolution where maps are large, involution in the third stage, attention in
the last.

Table 3 of SASA found early stages best convolved and late ones best attended; involution costs
least between them.
"""

_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmrednet.SpatialResNet',
        depth=50,
        spatial_cfg=[None, None, dict(type='Involution'), dict(type='StandAloneSelfAttention')],
    )
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
