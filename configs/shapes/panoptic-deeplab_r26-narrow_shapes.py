"""The convolution twin of the Axial-DeepLab beside it: the same widths and schedule, with 3x3
convolutions.
"""

_base_ = './panoptic-deeplab_axial26-narrow_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True,  # of attention, whose arguments a ResNet does not have
        type='mmrednet.SpatialResNet',
        depth=26,
        base_channels=16,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        out_indices=(0, 1, 3),
    )
)
