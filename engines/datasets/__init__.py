"""Datasets in and out: COCO, Pascal VOC, YOLO and Hugging Face imagefolder round one in-memory form."""
