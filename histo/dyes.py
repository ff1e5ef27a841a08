"""Colours of the dyes, apart from `histo.stains`, so that cutting slides does not wait for torch."""

# Optical density in red, green and blue of haematoxylin, eosin and DAB; Ruifrok & Johnston, Anal. Quant. Cytol. Histol.
# 23 (2001) 291.
HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
