_base_ = './upernet_nat-mini_8xb2-amp-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/nat_tiny.pth'),
    ),
)
