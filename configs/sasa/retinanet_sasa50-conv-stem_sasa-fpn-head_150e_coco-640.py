_base_ = './retinanet_sasa50-conv-stem_fpn_150e_coco-640.py'
model = dict(
    neck=dict(
        type='mmrednet.SpatialFPN',
        spatial_cfg=dict(type='StandAloneSelfAttention'),
        spatial_extra_convs=True,
    ),
    bbox_head=dict(
        type='mmrednet.SpatialRetinaHead', spatial_cfg=dict(type='StandAloneSelfAttention')
    ),
)
