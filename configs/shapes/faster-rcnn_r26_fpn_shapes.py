"""The convolution twin of the RedNet beside it: the same widths and schedule, with 3x3
convolutions.
"""

_base_ = './faster-rcnn_rednet26_inv-fpn-rpn_shapes.py'
model = dict(
    backbone=dict(type='mmrednet.SpatialResNet'),
    neck=dict(spatial_cfg=None),
    rpn_head=dict(spatial_cfg=None),
)
