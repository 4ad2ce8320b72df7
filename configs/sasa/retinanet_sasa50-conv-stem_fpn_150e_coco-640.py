_base_ = './retinanet_r50_fpn_150e_coco-640.py'
# no weights were published: the backbone starts from scratch, or from what tools of yours trained
model = dict(
    backbone=dict(
        _delete_=True, type='mmrednet.SASAResNet', depth=50, stem='conv', frozen_stages=-1
    )
)
