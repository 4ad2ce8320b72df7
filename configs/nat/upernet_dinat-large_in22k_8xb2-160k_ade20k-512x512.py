_base_ = './upernet_nat-mini_8xb2-amp-160k_ade20k-512x512.py'
# the published dilations are those of images of 640x640, and the crops of 512x512
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        arch='large',
        dilations='ade20k_640',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/dinat_large_in22k_224.pth'),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
# in single precision, as published
optim_wrapper = dict(type='OptimWrapper')
