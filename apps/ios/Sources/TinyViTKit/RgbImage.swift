/// An 8-bit RGB image.
public struct RgbImage: Equatable, Sendable {
    public static let channels = 3

    public let width: Int
    public let height: Int
    /// `height * width * 3` bytes, row by row.
    public let pixels: [UInt8]

    /// - Precondition: both sides are positive and `pixels` has a byte for every sample.
    public init(width: Int, height: Int, pixels: [UInt8]) {
        precondition(width > 0 && height > 0, "an image of \(width) x \(height) pixels")
        precondition(
            pixels.count == width * height * Self.channels,
            "\(pixels.count) bytes for \(width) x \(height) RGB pixels")
        self.width = width
        self.height = height
        self.pixels = pixels
    }

    /// Turns the image upright.
    ///
    /// - Parameter orientation: value of the EXIF tag 0x0112; what is not 2...8 changes nothing,
    ///   as in Pillow.
    public func upright(orientation: Int) -> RgbImage {
        // Where the upright pixel (x, y) lies in the stored image, by the table of the EXIF
        // specification: the tag names the sides at which the stored row 0 and column 0 are seen.
        let (right, bottom) = (width - 1, height - 1)
        switch orientation {
        case 2: return remapped(swapSides: false) { x, y in (right - x, y) }
        case 3: return remapped(swapSides: false) { x, y in (right - x, bottom - y) }
        case 4: return remapped(swapSides: false) { x, y in (x, bottom - y) }
        case 5: return remapped(swapSides: true) { x, y in (y, x) }
        case 6: return remapped(swapSides: true) { x, y in (y, bottom - x) }
        case 7: return remapped(swapSides: true) { x, y in (right - y, bottom - x) }
        case 8: return remapped(swapSides: true) { x, y in (right - y, x) }
        default: return self
        }
    }

    private func remapped(
        swapSides: Bool, source: (_ x: Int, _ y: Int) -> (x: Int, y: Int)
    ) -> RgbImage {
        let newWidth = swapSides ? height : width
        let newHeight = swapSides ? width : height
        var turned: [UInt8] = []
        turned.reserveCapacity(pixels.count)
        for y in 0..<newHeight {
            for x in 0..<newWidth {
                let from = source(x, y)
                let offset = (from.y * width + from.x) * Self.channels
                turned.append(contentsOf: pixels[offset..<offset + Self.channels])
            }
        }
        return RgbImage(width: newWidth, height: newHeight, pixels: turned)
    }
}
