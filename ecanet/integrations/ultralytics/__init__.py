"""YOLO and RT-DETR, as Ultralytics trains them. Ultralytics is licensed under the AGPL-3.0."""
