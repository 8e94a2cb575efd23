package dev.tinyvit.edge.core

import java.io.IOException
import org.json.JSONException
import org.json.JSONObject

/** Where the files of one bundle are read from: the app's assets, or a folder. */
fun interface BundleFiles {
    /** @throws IOException no such file, or not readable. */
    fun read(path: String): ByteArray
}

/**
 * What the app needs of `manifest.json`.
 *
 * @property target `onnx`, `executorch` or `tflite` on Android.
 * @property artifact file name of the artifact.
 * @property classes number of logits.
 */
data class Manifest(
    val target: String,
    val precision: String,
    val artifact: String,
    val sha256: String,
    val sizeBytes: Long,
    val inputName: String,
    val outputName: String,
    val classes: Int,
    val toolVersion: String,
)

/** A bundle that was read: everything but the artifact and the golden vectors. */
class Bundle(
    val name: String,
    val manifest: Manifest,
    val preprocessing: Preprocessing,
    val labels: List<String>,
    val files: BundleFiles,
) {
    companion object {
        private const val SCHEMA_VERSION = 1

        /**
         * Reads a bundle.
         *
         * @param name folder name, for messages.
         * @throws BundleException not a bundle that this app can run.
         */
        fun read(name: String, files: BundleFiles): Bundle =
            explain(name) {
                val json = JSONObject(files.text("manifest.json"))
                val version = json.getInt("schema_version")
                require(version == SCHEMA_VERSION) {
                    "schema version $version is not $SCHEMA_VERSION"
                }
                val contract = Preprocessing.fromJson(files.text("preprocess.json"))
                val manifest = manifest(json, contract.size)
                val labels = files.text("labels.txt").removeSuffix("\n").split("\n")
                require(labels.size == manifest.classes) {
                    "${labels.size} labels for ${manifest.classes} classes"
                }
                Bundle(name, manifest, contract, labels, files)
            }

        private fun manifest(json: JSONObject, size: Int): Manifest {
            val input = json.getJSONObject("input")
            require(input.getString("kind") == "tensor") {
                "its artifact takes an image, not a tensor"
            }
            val shape = input.getJSONArray("shape").let { s -> List(s.length()) { s.getInt(it) } }
            require(shape == listOf(1, RgbImage.CHANNELS, size, size)) {
                "its artifact takes $shape, its contract makes $size x $size pixels"
            }
            val artifact = json.getJSONObject("artifact")
            val output = json.getJSONObject("output")
            return Manifest(
                target = json.getString("target"),
                precision = json.getJSONObject("recipe").getString("name"),
                artifact = artifact.getString("file"),
                sha256 = artifact.getString("sha256"),
                sizeBytes = artifact.getLong("size_bytes"),
                inputName = input.getString("name"),
                outputName = output.getString("name"),
                classes = output.getJSONArray("shape").getInt(1),
                toolVersion = json.getJSONObject("tool").getString("version"),
            )
        }
    }
}

/**
 * Names of the bundles in a folder of bundles, by its `index.json`.
 *
 * @throws BundleException there is no index, or it is damaged or empty.
 */
fun bundleNames(files: BundleFiles): List<String> =
    explain("bundles") {
        val entries = JSONObject(files.text("index.json")).getJSONArray("bundles")
        require(entries.length() > 0) { "index.json lists no bundle" }
        List(entries.length()) { entries.getJSONObject(it).getString("name") }
    }

internal fun BundleFiles.text(path: String): String = read(path).decodeToString()

/** Turns what a damaged or missing file throws into one line. */
internal inline fun <T> explain(name: String, read: () -> T): T =
    try {
        read()
    } catch (error: IOException) {
        throw unusable(name, error)
    } catch (error: JSONException) {
        throw unusable(name, error)
    } catch (error: IllegalArgumentException) {
        throw unusable(name, error)
    } catch (error: BundleException) {
        throw BundleException("$name: ${error.message}", error)
    }

internal fun unusable(name: String, error: Exception): BundleException {
    // org.json puts the whole document behind its message
    val reason = error.message?.lineSequence()?.first() ?: error.toString()
    return BundleException(
        "$name: not a usable bundle ($reason); write it again with 'tinyvit-edge bundle'",
        error,
    )
}
