import CoreGraphics
import CoreVideo
import Foundation
import ImageIO
import TinyViTKit

extension RgbImage {
    /// More would not fit beside the model.
    private static let largest = 64_000_000
    /// JPEG's; a PNG may be a line of millions of pixels.
    private static let longest = 65_535

    /// Decodes a photo at full size and turns it upright.
    ///
    /// Colour profiles are ignored, as the contract says: the photo is drawn into a context of its
    /// own colour space, where nothing is converted. A photo with alpha is drawn on black.
    ///
    /// - Throws: `BundleError`: not an image, or too large.
    init(photo data: Data) throws {
        guard let source = CGImageSourceCreateWithData(data as CFData, nil),
            let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
        else { throw BundleError("photo: not an image that iOS can decode; choose another") }
        guard image.width * image.height <= Self.largest,
            max(image.width, image.height) <= Self.longest
        else {
            throw BundleError(
                "photo: \(image.width) x \(image.height) pixels are too many; choose another")
        }
        let properties =
            CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any] ?? [:]
        let orientation = properties[kCGImagePropertyOrientation] as? Int ?? 1
        self = try RgbImage(image).upright(orientation: orientation)
    }

    private init(_ image: CGImage) throws {
        // Grey, indexed and CMYK images have to be converted: their space has no three channels.
        let own = image.colorSpace.flatMap { $0.model == .rgb ? $0 : nil }
        let space = own ?? CGColorSpaceCreateDeviceRGB()
        let (width, height) = (image.width, image.height)
        var rgba = [UInt8](repeating: 0, count: 4 * width * height)
        let drawn = rgba.withUnsafeMutableBytes { bytes in
            guard
                let context = CGContext(
                    data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: 4 * width, space: space,
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.interpolationQuality = .none
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard drawn else {
            throw BundleError("photo: a colour space that cannot be drawn; choose another")
        }
        var pixels: [UInt8] = []
        pixels.reserveCapacity(Self.channels * width * height)
        for from in stride(from: 0, to: rgba.count, by: 4) {
            pixels.append(contentsOf: rgba[from..<from + Self.channels])
        }
        self.init(width: width, height: height, pixels: pixels)
    }

    /// Copies a camera frame in `kCVPixelFormatType_32BGRA`; nil of any other format.
    init?(frame: CVPixelBuffer) {
        guard CVPixelBufferGetPixelFormatType(frame) == kCVPixelFormatType_32BGRA else {
            return nil
        }
        CVPixelBufferLockBaseAddress(frame, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(frame, .readOnly) }
        guard let base = CVPixelBufferGetBaseAddress(frame) else { return nil }
        let (width, height) = (CVPixelBufferGetWidth(frame), CVPixelBufferGetHeight(frame))
        let bytesPerRow = CVPixelBufferGetBytesPerRow(frame)
        var pixels: [UInt8] = []
        pixels.reserveCapacity(Self.channels * width * height)
        for y in 0..<height {
            let row = base.advanced(by: y * bytesPerRow).assumingMemoryBound(to: UInt8.self)
            for x in 0..<width {
                pixels.append(row[4 * x + 2])
                pixels.append(row[4 * x + 1])
                pixels.append(row[4 * x])
            }
        }
        self.init(width: width, height: height, pixels: pixels)
    }
}
