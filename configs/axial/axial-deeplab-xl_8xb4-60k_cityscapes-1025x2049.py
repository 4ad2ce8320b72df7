_base_ = './axial-deeplab-s_8xb4-60k_cityscapes-1025x2049.py'
model = dict(backbone=dict(arch='xl'), decoder=dict(in_channels=[512, 1024, 4096]))
