_base_ = '../../_base_/panoptic/models/panoptic_deeplab.py'
model = dict(
    backbone=dict(
        type='mmrednet.AxialResNet',
        arch='s',
        stem='inception',
        output_stride=16,
        # 509 positions in every table, as in deeplab2
        table_size=255,
        span=65,
        out_indices=(0, 1, 3),
    ),
    decoder=dict(in_channels=[128, 256, 1024], context='projection'),
)
