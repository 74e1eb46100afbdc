"""From maps to labels: what LS-Imagine adds to a record (arXiv:2410.03618, section 3).

========================================  ==========================================================
``records``                               everything that is added to records, tensors in and out
``jumps``, ``running_statistics``         thresholds, zoomed views, jump labels
``gates``, ``video_score``                when a score is paid; the score of the last 16 frames
``map_scores``, ``zoom_windows``          what is read off a map; where to zoom
``virtual_exploration``, ``score_fusion``  81 zooms of a frame and their scores; a map of them
``zoom_path``, ``blur``, ``regions``      maths of the above
========================================  ==========================================================
"""
