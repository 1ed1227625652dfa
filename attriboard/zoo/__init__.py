"""Models made here: a small vision-language model and everything it is made with.

- ``scenes``: the pictures: objects of known kind, color, place and mask (Pillow and NumPy only).
- ``language``: what is said about a picture: questions, captions and their answers.
- ``llava``: builds and loads the model, an ordinary ``LlavaForConditionalGeneration``.
- ``build``: makes its weights from nothing but the language model, and measures it for its record and model card.

And models that are not trained: ``planted`` constructs them so that their mechanism is known, with a tokenizer of whole
words (``words``).
"""
