"""What flan_t5_questions.py and phi_questions.py ask."""

dataset = [
    {  # Simple Translation
        "premise": "Translate from English to Spanish",
        "question": "The book is on the table.",
        "few_shot": {
            "question": "The cat is sleeping on the sofa.",
            "answer": "El gato está durmiendo en el sofá.",
        },
    },
    {  # Commonsense Reasoning
        "premise": "Answer the question using commonsense knowledge",
        "question": "Why can't a fish live out of water?",
        "few_shot": {
            "question": "Why can't humans breathe underwater?",
            "answer": (
                "Humans can't breathe underwater because they need air, not water, to fill their lungs."
            ),
        },
    },
    {  # Creative Story Generation
        "premise": "Continue the story with a creative twist",
        "question": (
            "Once upon a time, in a forest far away, there was a small bear named Timmy who loved honey."
        ),
        "few_shot": {
            "question": "A princess woke up one day to find her castle floating in the sky.",
            "answer": (
                "As she looked outside, she saw a giant eagle carrying the castle on its back, "
                "flying towards the mountains."
            ),
        },
    },
    {  # Mathematical Problem Solving
        "premise": "Solve the mathematical problem",
        "question": "What is the square root of 144?",
        "few_shot": {
            "question": "What is the cube of 3?",
            "answer": "27.",
        },
    },
    {  # Fact-based Question Answering
        "premise": "Answer based on factual knowledge",
        "question": "Who was the first person to walk on the moon?",
        "few_shot": {
            "question": "Who was the first president of the United States?",
            "answer": "The first president of the United States was George Washington.",
        },
    },
    {  # Conversational Continuation
        "premise": "Continue the conversation naturally",
        "question": "User: Can you help me with directions? Agent:",
        "few_shot": {
            "question": "User: What’s the weather like today? Agent:",
            "answer": "It’s sunny and warm with a light breeze.",
        },
    },
    {  # Conversational Continuation
        "premise": "Continue the conversation naturally",
        "question": (
            "User: Can you help me with directions? Agent: Sure, where to and where from?"
            " User: I'd like to get from LA to San Jose today. What's the best road? Agent: "
        ),
        "few_shot": {
            "question": "User: What’s the weather like today? Agent:",
            "answer": "It’s sunny and warm with a light breeze.",
        },
    },
]
