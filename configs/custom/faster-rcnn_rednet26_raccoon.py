_base_ = './faster-rcnn_rednet26_custom.py'
data = dict(data_root='data/raccoon/', metainfo=dict(classes=('raccoon',)))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = test_evaluator = dict(ann_file='data/raccoon/val.json')
model = dict(roi_head=dict(bbox_head=dict(num_classes=1)))
