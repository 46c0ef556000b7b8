"""LibreTranslate's API, for models that say what they translate: by tasks in their config, as T5's, or by the
languages of their tokenizer, as mBART's, M2M100's, NLLB's and Marian's."""
