"""Floor 3: utility and memorisation of synthetic text, beside their floors and ceilings."""
