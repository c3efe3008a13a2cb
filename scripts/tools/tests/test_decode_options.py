"""Options of decode.py that only some decoders have."""

from .decode_script import ScriptTest


class OptionsTest(ScriptTest):
    """What a decoder does not have is refused before anything is read or installed."""

    def test_options_of_other_decoders(self):
        for text, decoder, *arguments in (
            ("--image is for other decoders than the built-in one", "emoji", "--image", "a.png"),
            ("--image is for kandinsky-2.2, not for karlo", "karlo", "--image", "a.png"),
            ("--mask is for kandinsky-2.2, not for kandinsky-2.1", "kandinsky-2.1", "--mask", "a.png", "--prompt", "x"),
            ("--hint is for kandinsky-2.2, not for sdxl", "sdxl", "--hint", "a.png"),
            ("--strength is for kandinsky-2.2, not for stable-unclip", "stable-unclip", "--strength", "0.5"),
            ("--noise-level is for stable-unclip, not for kandinsky-2.2", "kandinsky-2.2", "--noise-level", "5"),
            ("--ip-adapter is for sdxl, not for karlo", "karlo", "--ip-adapter", "a.bin"),
            ("--ip-adapter-scale is for sdxl, not for karlo", "karlo", "--ip-adapter-scale", "0"),
            ("sdxl takes no negative embeddings", "sdxl", "--negative-embeds", "n.npy"),
        ):
            with self.subTest(text):
                self.fail_with(text, "-", "--decoder", decoder, "--out", "a.png", *arguments)

    def test_options_that_do_not_go_together(self):
        image, mask, hint = (("--image", "i.png"), ("--mask", "m.png"), ("--hint", "h.png"))
        for text, *arguments in (
            ("--mask says where to repaint --image FILE", *mask),
            ("--mask goes with no --hint", *image, *mask, *hint),
            ("--strength is how far to go from --image", "--strength", "0.5"),
            ("--strength is how far to go from --image", *hint, "--strength", "0.5"),
            ("--strength is how far to go from --image", *image, *mask, "--strength", "0.5"),
            ("0 is not above 0 and at most 1", *image, "--strength", "0"),
            ("1.1 is not above 0 and at most 1", *image, "--strength", "1.1"),
            ("nan is not finite", *image, "--strength", "nan"),
        ):
            with self.subTest(text):
                self.fail_with(text, "-", "--decoder", "kandinsky-2.2", "--out", "a.png", *arguments)
        for value in ("-1", "1000", "x"):
            noise = ("--noise-level", value)
            self.fail_with("--noise-level", "-", "--decoder", "stable-unclip", "--out", "a.png", *noise)
