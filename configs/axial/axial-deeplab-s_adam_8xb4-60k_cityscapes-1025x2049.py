_base_ = './axial-deeplab-s_8xb4-60k_cityscapes-1025x2049.py'
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=1e-4))
