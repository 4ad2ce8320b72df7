model = dict(
    type='mmrednet.PanopticDeepLab',
    data_preprocessor=dict(
        type='mmdet.DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    # strides 4, 8 and 16; separable convolutions, as the published numbers of parameters have them
    decoder=dict(in_channels=[256, 512, 2048], aspp_conv='separable'),
    targets=dict(ignore_crowd=True),
)
