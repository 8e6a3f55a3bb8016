"""Answers about pictures as pictures: boxes, masks, keypoints, matches, depths, poses and documents' answers.

`answers` reads an answer by the form that its task has, `scenes` says what to draw of it, in the picture's own pixels,
and `layout` finds sizes and places for labels; `raster` draws with Pillow, `vector` writes SVG, and `coco` writes the
JSON of COCO instead.
"""
