"""Parler-TTS without its package, which is sources only and holds transformers at a version of 2024.

A description goes through a T5 encoder, the text through an embedding of its own; a decoder makes codes of both, a
column for each frame of sound and a row for each codebook; the Descript Audio Codec makes sound of the codes. Sources:
Lyth and King, arXiv 2402.01912; Copet et al., arXiv 2306.05284 (the delayed rows); Kumar et al., arXiv 2306.06546 (the
codec). What a checkpoint's files say is read as parler_tts 0.2.3 and transformers 4.46 read it; tests/fixtures/parler
holds us to that.
"""
