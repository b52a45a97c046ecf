"""Keras 3 on TensorFlow, after its guide on transfer learning; of random weights, so that its accuracy means nothing.

Augmented photos are cut at a random place, but always of 224 of 256 pixels: a share of the area it has no layer for.
"""

import os
from math import nan

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from job import BACKBONE_LR, BATCH_SIZE, LR, RESIZE, SIZE, Clock, Job
from keras import layers

job = Job.given()
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
keras.utils.set_random_seed(job.seed)
threads = tf.data.Options()
threads.threading.private_threadpool_size = 1
threads.threading.max_intra_op_parallelism = 1
clock = Clock(job)

cut = layers.CenterCrop(SIZE, SIZE)
random = keras.Sequential([layers.RandomCrop(SIZE, SIZE), layers.RandomFlip("horizontal")])


def images(split: str, step: keras.layers.Layer, training: bool) -> tf.data.Dataset:
    """The batches of a split."""
    found = keras.utils.image_dataset_from_directory(
        f"{job.data}/{split}",
        image_size=(RESIZE, RESIZE),
        crop_to_aspect_ratio=True,
        batch_size=BATCH_SIZE,
        shuffle=training,
        seed=job.seed,
    )
    return found.map(lambda x, y: (step(x, training=training), y)).prefetch(1).with_options(threads)


train, val = images("train", random if job.augment else cut, True), images("val", cut, False)
backbone = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
backbone.trainable = False
inputs = keras.Input((SIZE, SIZE, 3))
features = backbone(keras.applications.resnet50.preprocess_input(inputs), training=False)
classes = len(os.listdir(f"{job.data}/train"))
model = keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(features)))


class Epochs(keras.callbacks.Callback):
    """Tells the clock of each epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Validation is over."""
        clock.epoch(nan)


def fit(epochs: int, lr: float) -> None:
    """Trains what is trainable."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(lr), loss=loss, metrics=["accuracy"])
    model.fit(train, epochs=epochs, validation_data=val, callbacks=[Epochs()])


clock.start()
fit(job.head_epochs, LR)
if job.full_epochs:
    backbone.trainable = True
    fit(job.full_epochs, BACKBONE_LR)
clock.tell("keras", "tensorflow-cpu")
