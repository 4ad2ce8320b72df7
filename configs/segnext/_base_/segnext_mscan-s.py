_base_ = './segnext_mscan-t.py'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/mscan_s.pth')),
    decode_head=dict(in_channels=[128, 320, 512]),
)
