package dev.tinyvit.edge.app

import android.content.res.AssetManager
import dev.tinyvit.edge.core.Bundle
import dev.tinyvit.edge.core.BundleException
import dev.tinyvit.edge.core.BundleFiles
import dev.tinyvit.edge.core.bundleNames
import java.io.File
import java.io.IOException
import java.security.DigestOutputStream
import java.security.MessageDigest

/**
 * The bundles in the app's assets.
 *
 * @property cache where artifacts are put: the runtimes want files, and an asset is none.
 */
class AssetBundles(private val assets: AssetManager, private val cache: File) {
    /** @throws BundleException the app was built without bundles. */
    fun names(): List<String> = bundleNames(files(FOLDER))

    /** @throws BundleException not a bundle that this app can run. */
    fun open(name: String): Bundle = Bundle.read(name, files("$FOLDER/$name"))

    /**
     * The bundle's artifact as a file, copied the first time.
     *
     * @throws BundleException it is missing or is not the one that the manifest speaks of.
     */
    fun artifact(bundle: Bundle): File {
        val file = cache.resolve("${bundle.manifest.sha256}-${bundle.manifest.artifact}")
        if (!file.exists()) {
            try {
                copy("$FOLDER/${bundle.name}/${bundle.manifest.artifact}", file, bundle)
            } catch (error: IOException) {
                val reason = error.message
                throw BundleException("${bundle.name}: $reason; build the app again", error)
            }
        }
        return file
    }

    private fun copy(asset: String, file: File, bundle: Bundle) {
        cache.mkdirs()
        val partial = File.createTempFile("artifact", null, cache)
        try {
            val digest = MessageDigest.getInstance("SHA-256")
            assets.open(asset).use { source ->
                DigestOutputStream(partial.outputStream(), digest).use { source.copyTo(it) }
            }
            val sha256 = digest.digest().joinToString("") { "%02x".format(it) }
            if (sha256 != bundle.manifest.sha256) {
                throw IOException("${bundle.manifest.artifact} is not the one of its manifest")
            }
            if (!partial.renameTo(file)) throw IOException("$file cannot be written")
        } finally {
            partial.delete()
        }
    }

    private fun files(folder: String) =
        BundleFiles { path -> assets.open("$folder/$path").use { it.readBytes() } }

    private companion object {
        const val FOLDER = "bundles"
    }
}
