_base_ = './retinanet_sasa50-conv-stem_fpn_150e_coco-640.py'
model = dict(backbone=dict(stem='attention'))
