_base_ = './upernet_nat-small_8xb2-amp-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        dilations='ade20k',
        init_cfg=dict(checkpoint='checkpoints/dinat_small_in1k_224.pth'),
    )
)
