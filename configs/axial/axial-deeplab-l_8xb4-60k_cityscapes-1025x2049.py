_base_ = './axial-deeplab-s_8xb4-60k_cityscapes-1025x2049.py'
model = dict(backbone=dict(arch='l'), decoder=dict(in_channels=[256, 512, 2048]))
