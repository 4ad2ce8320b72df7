_base_ = './upernet_nat-base_8xb2-amp-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        type='mmrednet.DiNAT',
        dilations='ade20k',
        init_cfg=dict(checkpoint='checkpoints/dinat_base_in1k_224.pth'),
    )
)
