_base_ = './axial-deeplab-s_8xb8-200k_coco-641x641.py'
model = dict(backbone=dict(arch='l'), decoder=dict(in_channels=[256, 512, 2048]))
