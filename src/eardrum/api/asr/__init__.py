"""The API of whisper-asr-webservice: `/asr` and `/detect-language`, which Bazarr and other subtitle tools use."""
